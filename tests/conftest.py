import pytest


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_its_own(tmp_path_factory):
    """What a load remembers stays in this run of the tests, and what others remembered stays out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_CACHE", str(tmp_path_factory.mktemp("deploykit-cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_machine_that_stays_busy():
    """Nothing is measured again in the middle of a test because the machine has become quiet: such tests say so."""
    from deploykit.runtime import busy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy, "look", lambda seconds=0.0: busy.Busy(1.0, 0.0, 9.0))
        yield
