"""Settings of the process are changed by the first one in, and put back by the last one out."""

import pytest
import torch as th
from threadpoolctl import threadpool_limits

from sb3_trpo.guards.process import SharedSetting, one_blas_thread, unvalidated_distributions
from tests.promises.test_threads import process_state


@pytest.mark.parametrize("context", [unvalidated_distributions, one_blas_thread], ids=["validation", "threads"])
def test_shared_setting_is_put_back_by_the_last_one_out(context: SharedSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came first may leave first: the setting stays until nobody needs it."""
    # torch.compile turns the validation off for good
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)
    with threadpool_limits(2, user_api="blas"):
        before = process_state()
        first, second = context(), context()
        first.__enter__()
        changed_state = process_state()
        assert changed_state != before
        second.__enter__()
        first.__exit__(None, None, None)
        assert process_state() == changed_state
        second.__exit__(None, None, None)
        assert process_state() == before
