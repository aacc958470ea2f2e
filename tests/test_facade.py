"""What `import pyro_sde` offers, and when."""

import subprocess
import sys

import pytest

import pyro_sde


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_rooms_are_loaded_when_they_are_asked_for():
    before = "import sys, pyro_sde; print('pyro_sde.infer' in sys.modules); pyro_sde.SDEPath; "
    middle = "print('pyro_sde.infer' in sys.modules); pyro_sde.PathELBO; "
    assert run(before + middle + "print('pyro_sde.infer' in sys.modules)").split() == ["False", "False", "True"]
    assert run("from pyro_sde import LatentSDE; print(LatentSDE.__name__)") == "LatentSDE"


def test_settings_are_known_at_once():
    assert run("import pyro, pyro_sde; print(pyro.settings.get('pyro_sde_memory'))") == "full"


def test_every_room_is_an_attribute():
    code = "import pyro_sde; print(pyro_sde.data.load, pyro_sde.diagnostics.crps_samples, pyro_sde.testing.gof)"
    assert run(code).count("function") == 3


def test_every_listed_name_is_there():
    assert set(pyro_sde._ROOM_OF) <= set(pyro_sde.__all__)
    for name in pyro_sde.__all__:
        assert getattr(pyro_sde, name) is not None


def test_other_names_are_missing_as_anywhere():
    with pytest.raises(AttributeError, match="module 'pyro_sde' has no attribute 'Latent'"):
        _ = pyro_sde.Latent
