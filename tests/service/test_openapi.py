"""The OpenAPI says what the service does."""

from tests.service.fuzz import check_openapi


def test_no_request_makes_an_error_of_the_server_or_a_status_that_is_not_documented(port: int) -> None:
    done = check_openapi(f"http://127.0.0.1:{port}", "--phases", "examples,coverage", "--seed", "1", "--workers", "2")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
