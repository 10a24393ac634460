"""Every module can be the first one imported; OpenLTH has circular imports that forbid it."""

import json
import pkgutil
import subprocess
import sys

import open_lth
from tests.helpers import REPOSITORY

# Forks one child per module from a process that has only the libraries, so that each import starts afresh.
PROGRAM = '''
import importlib, json, os, sys
import numpy, torch, torchvision
errors = {}
for name in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    message = os.fdopen(reader).read()
    os.wait()
    if message:
        errors[name] = message
print(json.dumps(errors))
'''


def test_each_module_can_be_imported_first():
    names = [module.name for module in pkgutil.walk_packages(open_lth.__path__, 'open_lth.')
             if not module.name.endswith('__main__')]
    assert len(names) > 50
    outcome = subprocess.run(
        [sys.executable, '-c', PROGRAM, json.dumps(names)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(outcome.stdout) == {}


def test_listing_the_commands_imports_no_torch():
    """So that a mistyped command is answered at once."""

    outcome = subprocess.run(
        [sys.executable, '-X', 'importtime', 'main.py'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert not [line for line in outcome.stderr.splitlines() if line.split('|')[-1].strip() == 'torch']
