"""What is known about a published data set before it is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hllm.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """One row of `hllm data list`.

    urls            everything that has to be downloaded; zip and tar archives are unpacked
    files           names the reader looks for, in the folder or one level inside it
    size            size of the download, for people
    md5, sha256     published checksums by URL; URLs without one are not checked
    licence         in a few words; `page` has the whole
    text_fields     text columns in prompt order; empty: whatever the user's table has
    reader          "module:function", imported when used; it is called as
                    `function(folder, **reader_options, **options_of_the_user) -> Tables`
    reader_options  what tells apart the data sets that share a reader
    variant         what follows the colon of a family of data sets ("CATEGORY" of
                    "amazon-2014:CATEGORY"); `{variant}` in urls, files and checksum keys is
                    replaced by it, and the reader gets it as `variant=`
    page            where people read about it, and download what has no address of its own
    max_len         window of the published results, the dataset's default; None: no such custom
    check           "module:function" called with the user's reader options before anything is
                    fetched or read; raises ConfigError for values that cannot be
    fallback        "module:function" that writes the raw files from another place when no URL
                    can be reached, called as `function(folder)`, and `fallback_place`, its name
    """

    name: str
    summary: str
    reader: str
    urls: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    size: str = ""
    md5: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    text_fields: tuple[str, ...] = ()
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    page: str = ""
    max_len: int | None = None
    check: str = ""
    fallback: str = ""
    fallback_place: str = ""

    @property
    def title(self) -> str:
        """The name as a user types it, with the variant's placeholder."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    def with_variant(self, value: str) -> Source:
        """The member `value` of a family, such as amazon-2014:Beauty. ConfigError if it cannot be one."""
        if not value or not all(c.isalnum() or c in "_-&," for c in value):
            raise ConfigError(f"{self.name} needs a {self.variant}: write {self.title}, not {value!r}")

        def fill(text: str) -> str:
            return text.replace("{variant}", value)

        return replace(
            self,
            name=f"{self.name}:{value}",
            urls=tuple(map(fill, self.urls)),
            files=tuple(map(fill, self.files)),
            md5={fill(k): v for k, v in self.md5.items()},
            sha256={fill(k): v for k, v in self.sha256.items()},
            reader_options={**self.reader_options, "variant": value},
            variant="",
        )
