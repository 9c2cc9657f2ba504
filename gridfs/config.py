"""What a file system is: config.toml as a value. Pure."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field, fields
from typing import Any

from gridfs.codec.headlist import HeadList
from storage.errors import Refused
from storage.format.head import Succession

CONFIG_VERSION = 1


@dataclass(frozen=True, slots=True)
class Config:
    """config.toml; `create` or `recover` writes it, nothing changes it."""

    file_system: bytes
    """16 bytes that name it on the servers."""
    k: int
    n: int
    happy: int
    shares_per_server: int
    head_servers: tuple[bytes, ...]
    """Server ids that keep the head log."""
    recovery_public: bytes
    passphrase_command: str = ""
    """Command whose output is the passphrase; empty: ask on the terminal, if there is one at all."""
    first_key: bytes = b""
    """Verifying key (32 bytes) that the head log was created with; empty: that of the key file."""
    head_generation: int = 1
    """Of the list of head servers."""
    succession: Succession | None = None
    """Why the head log belongs to the key in the key file, if that is not the first one."""
    version: int = field(default=CONFIG_VERSION)

    @property
    def quorum(self) -> int:
        """W: head servers that must hold a record."""
        return self.quorum_of(len(self.head_servers))

    @property
    def head_list(self) -> HeadList:
        return HeadList(self.head_servers, self.quorum, self.head_generation)

    def quorum_of(self, head_servers: int) -> int:
        """W for so many head servers. With several shares a server, `happy` counts shares."""
        majority = head_servers // 2 + 1
        return max(self.happy, majority) if self.shares_per_server == 1 else majority

    def encode(self) -> str:
        """The text of config.toml."""
        lines = ["# A gridfs file system; written once by `gridfs create` or `gridfs recover`."]
        numbers = ("version", "k", "n", "happy", "shares_per_server", "head_generation")
        lines += [f"{name} = {getattr(self, name)}" for name in numbers]
        names = ("file_system", "recovery_public", "first_key")
        lines += [f'{name} = "{getattr(self, name).hex()}"' for name in names]
        lines.append(f"passphrase_command = {json.dumps(self.passphrase_command)}")
        servers = "".join(f'    "{server.hex()}",\n' for server in self.head_servers)
        return "\n".join(lines) + f"\nhead_servers = [\n{servers}]\n" + _encode_succession(self.succession)

    @classmethod
    def parse(cls, text: str, where: str) -> Config:
        """Raises Refused with one line that says what is wrong and where."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Refused(f"{where} cannot be read: {error}") from None
        version = values.get("version")
        if version != CONFIG_VERSION:
            raise Refused(f"{where} has format version {version}; this gridfs reads {CONFIG_VERSION}")
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise Refused(f"{where}: unknown key {name!r}")
        try:
            config = cls(
                file_system=bytes.fromhex(values["file_system"]),
                k=int(values["k"]),
                n=int(values["n"]),
                happy=int(values["happy"]),
                shares_per_server=int(values["shares_per_server"]),
                head_servers=tuple(bytes.fromhex(server) for server in values["head_servers"]),
                recovery_public=bytes.fromhex(values["recovery_public"]),
                passphrase_command=str(values.get("passphrase_command", "")),
                first_key=bytes.fromhex(values.get("first_key", "")),
                head_generation=int(values.get("head_generation", 1)),
                succession=_parse_succession(values.get("succession")),
            )
        except KeyError as error:
            raise Refused(f"{where}: {error.args[0]} is missing") from None
        except (TypeError, ValueError, Refused) as error:
            raise Refused(f"{where}: {error}") from None
        if not 1 <= config.k <= config.happy <= config.n <= 256 or len(config.file_system) != 16:
            raise Refused(f"{where}: k, happy and n do not go together")
        if len(config.first_key) not in (0, 32) or len(config.recovery_public) != 32:
            raise Refused(f"{where}: first_key or recovery_public is not a key of 32 bytes")
        return config


def _encode_succession(succession: Succession | None) -> str:
    if succession is None:
        return ""
    names = ("verifying_key", "wrapped", "signature")
    lines = [f'{name} = "{getattr(succession, name).hex()}"' for name in names]
    return "\n".join(["", "[succession]", f"generation = {succession.generation}", *lines, ""])


def _parse_succession(values: Any) -> Succession | None:
    """Raises KeyError, TypeError, ValueError, Refused."""
    if values is None:
        return None
    if set(values) != {"generation", "verifying_key", "wrapped", "signature"}:
        raise ValueError("the table succession has other keys than it should")
    keys = [bytes.fromhex(values[name]) for name in ("verifying_key", "wrapped", "signature")]
    succession = Succession(int(values["generation"]), *keys)
    succession.check()
    return succession
