import pytest

from tests.ops.cases import IMPLS


# Not function-scoped: hypothesis runs many examples with one value of the fixture.
@pytest.fixture(scope="session", params=IMPLS)
def impl(request) -> str:
    """Every implementation there is; each is held to the same tests."""
    return request.param
