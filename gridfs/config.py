"""What a file system is: config.toml as a value. Pure."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field, fields

from storage.errors import Refused

CONFIG_VERSION = 1


@dataclass(frozen=True, slots=True)
class Config:
    """config.toml; `create` writes it, nothing changes it."""

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
    version: int = field(default=CONFIG_VERSION)

    @property
    def quorum(self) -> int:
        """W: head servers that must hold a record. With several shares a server, `happy` counts shares."""
        majority = len(self.head_servers) // 2 + 1
        return max(self.happy, majority) if self.shares_per_server == 1 else majority

    def encode(self) -> str:
        """The text of config.toml."""
        lines = ["# A gridfs file system; written once by `gridfs create`.", f"version = {self.version}"]
        lines += [f"{name} = {getattr(self, name)}" for name in ("k", "n", "happy", "shares_per_server")]
        lines += [f'{name} = "{getattr(self, name).hex()}"' for name in ("file_system", "recovery_public")]
        lines.append(f"passphrase_command = {json.dumps(self.passphrase_command)}")
        servers = "".join(f'    "{server.hex()}",\n' for server in self.head_servers)
        return "\n".join(lines) + f"\nhead_servers = [\n{servers}]\n"

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
            )
        except KeyError as error:
            raise Refused(f"{where}: {error.args[0]} is missing") from None
        except (TypeError, ValueError) as error:
            raise Refused(f"{where}: {error}") from None
        if not 1 <= config.k <= config.happy <= config.n <= 256 or len(config.file_system) != 16:
            raise Refused(f"{where}: k, happy and n do not go together")
        return config
