from __future__ import annotations

import pytest

from bnfold.errors import BnfoldError
from service.repository.policy import parse_policy


@pytest.mark.parametrize(
    ("text", "versions", "order", "enough_at"),
    [
        ("latest", (1, 2, 10), (10, 2, 1), 1),
        ("latest:2", (1, 2, 10), (10, 2, 1), 2),
        ("all", (1, 2, 10), (10, 2, 1), None),
        ("specific:1,10", (1, 2, 10), (10, 1), None),
        ("specific:7", (1, 2, 10), (7,), None),
    ],
)
def test_says_which_versions_to_try_and_when_it_has_enough(text, versions, order, enough_at):
    policy = parse_policy(text)
    assert policy.order(versions) == order
    assert [count for count in range(5) if policy.has_enough(count)][:1] == ([] if enough_at is None else [enough_at])


@pytest.mark.parametrize(
    "text",
    ["", "Latest", "latest:", "latest:0", "latest:-1", "latest:9999999", "all ", "specific", "specific:", "specific:1,",
     "specific:01", "specific:1,1", "specific:1.5", "specific:..", "latest\n", "specific:9999999999"],
)  # fmt: skip
def test_refuses_what_is_no_policy_in_one_sentence(text):
    with pytest.raises(BnfoldError, match="version policy") as refusal:
        parse_policy(text)
    assert "\n" not in str(refusal.value)
