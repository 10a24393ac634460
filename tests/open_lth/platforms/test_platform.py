import pytest
import torch

from open_lth.platforms import platform, registry
from open_lth.platforms.base import Platform
from tests.conftest import make_platform


def test_run_job_installs_the_platform_and_restores_the_one_before():
    outer, inner = make_platform(), make_platform()
    seen = []
    outer.run_job(lambda: inner.run_job(lambda: seen.append(platform.get_platform())) or seen.append(
        platform.get_platform()))
    assert seen == [inner, outer] and platform._PLATFORM is None


def test_run_job_restores_the_platform_when_the_job_fails():
    """Fixed: OpenLTH leaves it in place."""

    with pytest.raises(ZeroDivisionError):
        make_platform().run_job(lambda: 1 / 0)
    assert platform._PLATFORM is None


def test_an_assigned_platform_is_looked_up_at_call_time():
    platform._PLATFORM = make_platform(root='/nowhere')
    assert platform.get_platform().root == '/nowhere'


def test_one_process_on_one_device(local_platform):
    assert (local_platform.rank, local_platform.world_size, local_platform.is_distributed,
            local_platform.is_primary_process) == (0, 1, False, True)
    assert local_platform.barrier() is None
    assert local_platform.torch_device.type == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert torch.device(local_platform.device_str), 'fixed: a list of devices is no device'


def test_registry():
    assert issubclass(registry.get('local'), Platform)
    with pytest.raises(ValueError):
        registry.get('nope')


def test_no_workers_by_default():
    assert make_platform().num_workers == 0
    assert registry.get('local')(num_workers=3).num_workers == 3


# ---- file access

def test_files_written_through_the_platform(tmp_path, local_platform):
    folder, path = str(tmp_path / 'a' / 'b'), str(tmp_path / 'a' / 'b' / 'file')
    assert not local_platform.exists(folder)
    local_platform.makedirs(folder)
    local_platform.makedirs(folder)
    assert local_platform.isdir(folder) and local_platform.listdir(folder) == []
    with local_platform.open(path, 'w') as fp:
        fp.write('x')
        assert not local_platform.exists(path), 'files appear when they are complete'
    with local_platform.open(path) as fp:
        assert fp.read() == 'x'
    with local_platform.open(path, 'rb') as fp:
        assert fp.read() == b'x'
    assert local_platform.listdir(folder) == ['file'] and not local_platform.isdir(path)


def test_models_written_through_the_platform(tmp_path, local_platform):
    path = str(tmp_path / 'model')
    local_platform.save_model({'a': torch.arange(3)}, path)
    assert local_platform.load_model(path)['a'].tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        local_platform.load_model(str(tmp_path / 'absent'))


def test_a_failing_save_leaves_the_old_file(tmp_path, local_platform):
    path = tmp_path / 'model'
    local_platform.save_model({'a': torch.arange(3)}, str(path))
    before = path.read_bytes()
    with pytest.raises(Exception, match='pickle'):
        local_platform.save_model({'a': lambda: 0}, str(path))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
