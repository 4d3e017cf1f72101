"""The client of object stores: botocore, the library below s3fs, with the settings that s3fs would use.

It retries 5xx, throttling and broken connections with backoff.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.base.errors import ConfigError

Answer = TypeVar("Answer")

_ATTEMPTS = 5  # where AWS_MAX_ATTEMPTS, or the profile, says nothing


def retried(act: Callable[[Any], Answer]) -> Answer:
    """Make a request again where its answer breaks off in the middle, which botocore leaves to whoever reads it."""
    from botocore import exceptions  # noqa: PLC0415 - only who uses a store pays for its library

    broken = (exceptions.ResponseStreamingError, exceptions.ReadTimeoutError, exceptions.IncompleteReadError)
    client = _client(frozenset(each for each in os.environ.items() if each[0].startswith(("AWS_", "FSSPEC_"))))
    for attempt in range(_ATTEMPTS - 1):
        try:
            return act(client)
        except broken:
            time.sleep(2**attempt / 4)
    return act(client)


@functools.cache
def _client(_: frozenset[tuple[str, str]]) -> Any:
    """The client for an environment, which threads may share. Raises `ConfigError` for an endpoint that cannot be."""
    import botocore.session  # noqa: PLC0415 - only who uses a store pays for its library
    import s3fs  # noqa: PLC0415 - as above
    from botocore.config import Config  # noqa: PLC0415 - as above

    system = s3fs.S3FileSystem()  # knows what fsspec is configured with
    session = botocore.session.Session(profile=system.kwargs.get("profile"))
    attempts = int(session.get_config_variable("max_attempts") or _ATTEMPTS)
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, connect_timeout=10, read_timeout=60)
    options = {"use_ssl": system.use_ssl, **system.client_kwargs}
    keys = {"aws_access_key_id": system.key, "aws_secret_access_key": system.secret, "aws_session_token": system.token}
    if system.endpoint_url:
        options["endpoint_url"] = system.endpoint_url
    given = {name: value for name, value in keys.items() if value}
    try:
        return session.create_client("s3", config=config.merge(Config(**system.config_kwargs)), **given, **options)
    except ValueError as error:
        raise ConfigError(f"the object store: {error}") from None
