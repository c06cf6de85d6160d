from __future__ import annotations

import pytest

from tasks.utils.redaction import redact, secret_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://anna:ge-heim%21@db:5432/runs", "postgresql://***@db:5432/runs"),
        ("git clone https://ghp_abc123@host/x.git", "git clone https://***@host/x.git"),
        ("redis://:pass@cache/0", "redis://***@cache/0"),
        ("two http://a:b@c and https://d:e@f", "two http://***@c and https://***@f"),
        ("s3://bucket/a?X-Amz-Signature=12ab&part=1", "s3://bucket/a?X-Amz-Signature=***&part=1"),
        ("http://127.0.0.1:4200/api and mail to a@b", "http://127.0.0.1:4200/api and mail to a@b"),
        ("sqlite:////home/anna/mlruns/mlflow.db", "sqlite:////home/anna/mlruns/mlflow.db"),
        ("https://host/path/with@sign", "https://host/path/with@sign"),
    ],
)
def test_credentials_in_urls(text: str, shown: str) -> None:
    assert redact(text, {}) == shown


def test_values_of_secret_variables() -> None:
    environ = {
        "HF_TOKEN": "hf_qwertz",
        "AWS_SECRET_ACCESS_KEY": "abc/def+ghi",
        "HOME": "/home/anna",
        "A_TOKEN": "1",
    }
    assert secret_values(environ) == ["abc/def+ghi", "hf_qwertz"]
    assert redact("401 for hf_qwertz with abc/def+ghi in /home/anna, 1 time", environ) == (
        "401 for *** with *** in /home/anna, 1 time"
    )
