from __future__ import annotations

import logging
import warnings

import pytest

from hf_kdnas.latency.quiet import quiet


def test_chatter_is_held_back_and_errors_are_not(capsys, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            print("progress")
            warnings.warn("old", FutureWarning, stacklevel=1)
            logging.getLogger("a library").warning("drift")
            logging.getLogger("a library").error("broken")
    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["broken"]


def test_the_callers_logging_is_left_as_it_was() -> None:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with pytest.raises(KeyError), quiet():
            raise KeyError
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(before)
