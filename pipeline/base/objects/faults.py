"""What a request to an object store may end with, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.base.errors import BusyError, ConfigError, DataError, StorageError, TightpackError
from pipeline.base.words import in_one_line

_NOT_LET_IN = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_THROTTLED = {
    "409",
    "429",
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
MISSING = {"404", "NoSuchKey", "NotFound"}
"""Codes of an object that is not there."""

CONDITION_FAILED = {"412", "PreconditionFailed"}
"""Codes of a request whose condition did not hold."""


@contextmanager
def told(where: str, *, is_output: bool) -> Iterator[None]:
    """Turn whatever a request raises, after its retries, into one message; other answers of the store pass.

    where: the URL asked for; is_output: whether it is written to, where what is forbidden is a fault of storage.

    Raises `BusyError` for what may pass, `ConfigError` for a bucket that is not there and settings that cannot be,
    `DataError` for credentials, `StorageError` for the rest.
    """
    from botocore import exceptions  # noqa: PLC0415 - only who uses a store pays for its library

    try:
        yield
    except TightpackError:
        raise
    except exceptions.ClientError as error:
        code = code_of(error)
        if code in MISSING | CONDITION_FAILED:
            raise
        raise _answered(code, error.response, f"{where}: {in_one_line(error)}", is_output=is_output) from None
    except (exceptions.NoCredentialsError, exceptions.CredentialRetrievalError) as error:
        raise DataError(f"{where}: {in_one_line(error)}; set AWS_ACCESS_KEY_ID, or a profile") from None
    except (exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        raise ConfigError(f"{where}: {in_one_line(error)}") from None
    except (exceptions.BotoCoreError, TimeoutError, ConnectionError) as error:
        raise BusyError(f"{where}: {in_one_line(error)}") from None


def code_of(error: Exception) -> str:
    """The code of an answer that is an error."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _answered(code: str, response: dict[str, dict[str, object]], message: str, *, is_output: bool) -> TightpackError:
    """The error of ours for an answer of the store."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return ConfigError(f"{message}; make the bucket first, or name another")
    if code in _NOT_LET_IN:
        return DataError(message)
    if code in _THROTTLED or (isinstance(status, int) and status >= 500):
        return BusyError(message)
    return StorageError(message) if is_output else DataError(message)
