"""Objects under a prefix of a bucket, and every request that is made for them.

Each is announced as a step (`pipeline.base.storage.perform`) and then made by botocore, the library below s3fs, with
the endpoint and credentials that s3fs would use. It retries 5xx, throttling and broken connections with backoff.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.base.errors import ConfigError, DataError
from pipeline.base.objects.client import retried
from pipeline.base.objects.faults import CONDITION_FAILED, MISSING, code_of, told
from pipeline.base.storage import FileFacts, HashingFile, Operation, Step, open_file, perform

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

_URL = re.compile(r"([A-Za-z][\w+.-]+):/+(.*)")
_KINDS = ("s3", "s3a")
_PART_BYTES = 16 << 20  # of a large object; S3 wants 5 MiB or more, and at most 10,000 parts
_MOST_PARTS = 10_000
_MOST_COPIED = 5 << 30  # by one request
_COPIED_PART = 1 << 30
_BLOCK_BYTES = 1 << 20
_MOST_DELETED = 1_000  # by one request
_HASH = "xxh3-128"  # the metadata in which an object's content hash is kept
_RECORD = "record"  # the same of how it was made

MOST_RECORDED = 1_500
"""Characters of a record that fit into an object's metadata, of which S3 takes 2 KB in all."""


def is_url(name: str | Path) -> bool:
    """Whether a name is a URL, also one whose slashes a path has taken."""
    return _URL.match(str(name)) is not None


@dataclass(frozen=True)
class Content:
    """A small object."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Listed:
    """What a listing says of an object."""

    bytes: int
    etag: str
    modified: datetime


@dataclass(frozen=True, kw_only=True)
class Recorded(FileFacts):
    """What was kept with an object as it was made, and its size; empty where it was not."""

    record: str


@dataclass(frozen=True)
class ObjectStore:
    """Objects whose keys begin alike; each has a name, which is the rest of its key."""

    bucket: str
    prefix: str
    """Ends with a slash."""

    is_output: bool = False
    """Whether it is written to."""

    @classmethod
    def at(cls, url: str | Path, option: str, *, is_output: bool = False) -> ObjectStore:
        """The objects below a URL. option: how messages call it.

        Raises `ConfigError` for another kind of URL, and where no folder in a bucket is named.
        """
        match = _URL.match(str(url))
        assert match is not None, "a URL is given"
        kind, rest = match[1].lower(), match[2].rstrip("/")
        if kind not in _KINDS:
            raise ConfigError(f"{option} {url}: of URLs only s3://bucket/folder is known here")
        bucket, *folders = rest.split("/")
        if not bucket or not folders or {"", ".", ".."} & set(folders):
            raise ConfigError(f"{option} {url}: name a folder in a bucket, as in s3://bucket/folder")
        return cls(bucket, "/".join(folders) + "/", is_output)

    @property
    def url(self) -> str:
        """How messages name it."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def inside(self, folder: str) -> ObjectStore:
        """The objects in a folder of it."""
        return ObjectStore(self.bucket, f"{self.prefix}{folder}/", self.is_output)

    def listed(self) -> dict[str, Listed]:
        """All objects by name, sorted."""
        found = {}
        for page in self._pages("list_objects_v2", Prefix=self.prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self.prefix)
                found[name] = Listed(bytes=entry["Size"], etag=entry["ETag"], modified=entry["LastModified"])
        return dict(sorted(found.items()))

    def names(self) -> set[str]:
        """The names of the objects, and of the folders with a slash at their end, one level deep."""
        names = set()
        for page in self._pages("list_objects_v2", Prefix=self.prefix, Delimiter="/"):
            names |= {entry["Key"].removeprefix(self.prefix) for entry in page.get("Contents", ())}
            names |= {entry["Prefix"].removeprefix(self.prefix) for entry in page.get("CommonPrefixes", ())}
        return names - {""}

    def get(self, name: str) -> Content | None:
        """A small object; None if there is none of that name."""

        def act(client: Any) -> Content:
            answer = client.get_object(Bucket=self.bucket, Key=self.prefix + name)
            with closing(answer["Body"]) as body:
                return Content(body.read(), answer["ETag"])

        return self._unless(MISSING, "get", name, act)

    def create(self, name: str, content: bytes, facts: FileFacts | None = None) -> str | None:
        """Make an object, unless there is one of that name; returns its ETag, None if there is.

        facts: of the content, where they are known, to be kept with it.
        """
        return self._put(name, content, _metadata(facts), IfNoneMatch="*")

    def replace(self, name: str, content: bytes, etag: str, facts: FileFacts | None = None) -> str | None:
        """Replace an object, if it still has that ETag; returns the new one, None if it has not."""
        return self._put(name, content, _metadata(facts), IfMatch=etag)

    def upload(self, path: Path, name: str, facts: FileFacts, record: str = "") -> None:
        """Make an object of a file, in parts if it is large, or replace it.

        facts: of the file; record: of how it was made, up to `MOST_RECORDED` characters of ASCII to be kept with it.
        """
        metadata = _metadata(facts, record)
        if facts.bytes > _PART_BYTES:
            self._upload_parts(path, name, facts.bytes, metadata)
            return
        with open_file(path) as file:
            self._put(name, file.read(), metadata)

    def copy(self, source: ObjectStore, name: str, size: int) -> None:
        """Let the store copy an object of that name, with what is kept beside it. size: in bytes."""
        from_key = {"Bucket": source.bucket, "Key": source.prefix + name}
        if size <= _MOST_COPIED:
            where = {"Bucket": self.bucket, "Key": self.prefix + name}
            self._request("copy", name, lambda client: client.copy_object(**where, CopySource=from_key))
            return
        kept = source.recorded(name)

        def part(client: Any, number: int, start: int, end: int, where: Mapping[str, Any]) -> Any:
            span = f"bytes={start}-{end - 1}"
            more = {"PartNumber": number, "CopySource": from_key, "CopySourceRange": span}
            return client.upload_part_copy(**where, **more)["CopyPartResult"]

        metadata = {} if kept is None else _metadata(kept, kept.record)
        self._in_parts(name, size, metadata, _COPIED_PART, "copy", part)

    def recorded(self, name: str) -> Recorded | None:
        """What was kept with an object as it was made; None if there is none of that name."""

        def act(client: Any) -> Recorded:
            answer = client.head_object(Bucket=self.bucket, Key=self.prefix + name)
            metadata, size = answer["Metadata"], answer["ContentLength"]
            return Recorded(bytes=size, xxh3_128=metadata.get(_HASH, ""), record=metadata.get(_RECORD, ""))

        return self._unless(MISSING, "look", name, act)

    def holds(self, name: str, facts: FileFacts) -> bool:
        """Whether an object is there that was made with that content."""
        kept = self.recorded(name)
        return kept is not None and (kept.bytes, kept.xxh3_128) == (facts.bytes, facts.xxh3_128)

    def delete(self, names: Collection[str]) -> None:
        """Delete objects, if they are there."""
        keys = [{"Key": self.prefix + name} for name in sorted(names)]
        for first in range(0, len(keys), _MOST_DELETED):
            batch = {"Objects": keys[first : first + _MOST_DELETED], "Quiet": True}
            where = str(keys[first]["Key"]).removeprefix(self.prefix)
            self._request("remove", where, functools.partial(_delete, self.bucket, batch))

    def abort_uploads(self) -> int:
        """Drop the parts of objects that nobody finished; returns how many objects."""
        aborted = 0
        for page in self._pages("list_multipart_uploads", Prefix=self.prefix):
            for upload in page.get("Uploads", ()):
                which = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                name = upload["Key"].removeprefix(self.prefix)
                self._unless(
                    {*MISSING, "NoSuchUpload"},
                    "remove",
                    name,
                    functools.partial(_abort, which),
                )
                aborted += 1
        return aborted

    def read(self, name: str, reader: Callable[[BinaryIO], Answer]) -> Answer:
        """What a reader makes of an object, from its beginning on. Raises `DataError` if there is none."""

        def act(client: Any) -> Answer:
            with closing(client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"]) as body:
                return reader(body)

        return self._there(name, self._unless(MISSING, "get", name, act))

    def download(self, name: str, path: Path) -> FileFacts:
        """Write an object to a file. Raises `DataError` if there is none, and `OSError`."""

        def copied(body: BinaryIO) -> FileFacts:
            file = HashingFile(path)
            try:
                while block := body.read(_BLOCK_BYTES):
                    file.write(block)
                return file.finish()
            finally:
                file.discard()

        return self.read(name, copied)

    def _there(self, name: str, found: Answer | None) -> Answer:
        if found is None:
            raise DataError(f"{self.url}/{name}: no such object")
        return found

    def _put(self, name: str, content: bytes, metadata: Mapping[str, str], **condition: str) -> str | None:
        """Put an object; None where the condition does not hold. A retry of what was done already is done."""
        more: dict[str, Any] = {**condition, "Metadata": metadata}

        def act(client: Any) -> str:
            answer = client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=content, **more)
            return str(answer["ETag"])

        missing = MISSING if "IfMatch" in condition else set()
        etag = self._unless(CONDITION_FAILED | missing, "put", name, act)
        if etag is None and condition and (there := self.get(name)) is not None and there.data == content:
            return there.etag
        return etag

    def _upload_parts(self, path: Path, name: str, size: int, metadata: Mapping[str, str]) -> None:
        def part(client: Any, number: int, start: int, end: int, where: Mapping[str, Any]) -> Any:
            with open_file(path) as file:
                file.seek(start)
                data = file.read(end - start)
            return client.upload_part(**where, PartNumber=number, Body=data, ChecksumAlgorithm="CRC32")

        self._in_parts(name, size, metadata, max(_PART_BYTES, -(-size // _MOST_PARTS)), "put", part)

    def _in_parts(
        self,
        name: str,
        size: int,
        metadata: Mapping[str, str],
        part_bytes: int,
        operation: Operation,
        part: Callable[..., Any],
    ) -> None:
        """Make an object of parts, and leave none of them where one fails."""
        key = {"Bucket": self.bucket, "Key": self.prefix + name}

        def begin(client: Any) -> str:
            answer = client.create_multipart_upload(**key, Metadata=metadata, ChecksumAlgorithm="CRC32")
            return str(answer["UploadId"])

        where = {**key, "UploadId": self._request(operation, name, begin)}
        try:
            parts = []
            for number, start in enumerate(range(0, size, part_bytes), 1):
                end = min(start + part_bytes, size)
                made = self._request(operation, name, functools.partial(_part, part, number, start, end, where))
                known = {field: made[field] for field in ("ETag", "ChecksumCRC32") if field in made}
                parts.append({"PartNumber": number, **known})
            whole = {"MultipartUpload": {"Parts": parts}}
            self._request(operation, name, lambda client: client.complete_multipart_upload(**where, **whole))
        except BaseException:
            self._forget(name, where)
            raise

    def _forget(self, name: str, where: Mapping[str, Any]) -> None:
        """Drop the parts of an object, if that can be; the next run drops what is left."""
        try:
            self._request("remove", name, functools.partial(_abort, where))
        except Exception:
            log.debug("%s/%s: its parts are left to the next run", self.url, name)

    def _unless(
        self, codes: Collection[str], operation: Operation, name: str, act: Callable[[Any], Answer]
    ) -> Answer | None:
        """Make a request; None if the store answers with one of these codes."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - only who uses a store pays for its library

        try:
            return self._request(operation, name, act)
        except ClientError as error:
            if code_of(error) in codes:
                return None
            raise

    def _request(self, operation: Operation, name: str, act: Callable[[Any], Answer]) -> Answer:
        where = f"{self.url}/{name}"
        with told(where, is_output=self.is_output):
            return perform(Step(operation, where), lambda: retried(act))

    def _pages(self, request: str, **options: Any) -> list[dict[str, Any]]:
        def act(client: Any) -> list[dict[str, Any]]:
            return list(client.get_paginator(request).paginate(Bucket=self.bucket, **options))

        return self._request("list", "", act)


def _metadata(facts: FileFacts | None, record: str = "") -> dict[str, str]:
    kept = {_HASH: "" if facts is None else facts.xxh3_128, _RECORD: record}
    return {name: value for name, value in kept.items() if value}


def _part(part: Callable[..., Any], number: int, start: int, end: int, where: Mapping[str, Any], client: Any) -> Any:
    return part(client, number, start, end, where)


def _delete(bucket: str, batch: Mapping[str, Any], client: Any) -> None:
    """Delete objects. Raises `ClientError` for the first that the store did not delete."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - as above

    answer = client.delete_objects(Bucket=bucket, Delete=batch)
    for error in answer.get("Errors", ()):
        raise ClientError({"Error": error, "ResponseMetadata": answer["ResponseMetadata"]}, "DeleteObjects")


def _abort(which: Mapping[str, Any], client: Any) -> None:
    client.abort_multipart_upload(**which)
