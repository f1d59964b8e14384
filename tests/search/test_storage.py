from __future__ import annotations

import optuna
import pytest

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.search.study import open_study


def test_a_url_that_leads_nowhere_is_shown_without_its_password():
    with pytest.raises(InvalidInput, match=r"search\.storage.*nonsense://host/runs") as caught:
        open_study("nonsense://user:secret@host/runs", "search")
    assert "secret" not in str(caught.value)


def test_a_missing_database_driver_is_named(monkeypatch):
    def missing(url):
        raise ImportError("no driver")

    monkeypatch.setattr(optuna.storages, "get_storage", missing)
    with pytest.raises(MissingPackage, match=r"hf-kdnas\[postgres\]"):
        open_study("postgresql://user:secret@host/runs", "search")
