import errno
import os
import stat
from unittest import mock

import pytest

from open_lth.foundations.files import write_atomically


def write(path, text):
    with write_atomically(path) as fp:
        fp.write(text)


def test_new_content_replaces_the_old(tmp_path):
    path = tmp_path / 'file'
    write(path, 'old')
    write(path, 'new')
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['file']


def test_a_failing_writer_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / 'file'
    write(path, 'old')
    with pytest.raises(RuntimeError), write_atomically(path) as fp:
        fp.write('half')
        raise RuntimeError
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, function):
    path = tmp_path / 'file'
    write(path, 'old')
    full = OSError(errno.ENOSPC, 'No space left on device')
    with mock.patch.object(os, function, side_effect=full), pytest.raises(OSError):
        write(path, 'new')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file']


def test_content_is_on_the_disk_before_it_gets_its_name_and_the_name_after(tmp_path):
    calls = []

    def record(name):
        return mock.patch.object(os, name, side_effect=lambda *args: calls.append(name))

    with record('fsync'), record('replace'):
        write(tmp_path / 'file', 'new')
    assert calls == ['fsync', 'replace', 'fsync'], 'the file, then the folder that holds its new name'


def test_readers_see_nothing_until_the_writer_is_done(tmp_path):
    path = tmp_path / 'file'
    with write_atomically(path) as fp:
        fp.write('half')
        fp.flush()
        assert not path.exists()
    assert path.read_text() == 'half'


def test_files_get_ordinary_permissions(tmp_path):
    plain, atomic = tmp_path / 'plain', tmp_path / 'atomic'
    plain.write_text('x')
    write(atomic, 'x')
    assert stat.S_IMODE(plain.stat().st_mode) == stat.S_IMODE(atomic.stat().st_mode)
