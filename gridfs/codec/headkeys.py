"""As whom a client speaks to the head servers: its keys, and how the head log came to them.

A head log keeps the name that its first key and the recovery key gave it; a successor shows with each claim
that the recovery key endorsed it. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gridfs.codec.keys import KeyTree, ReadTree, sign
from storage.format.head import EPOCH_BITS, SIGNATURE_SIZE, HeadClaim, HeadRecord, Succession, fits, log_name


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """The keys of one file system, as its head log knows them."""

    tree: KeyTree | ReadTree
    first_key: bytes
    """Verifying key (32 bytes) of generation 0."""
    recovery_public: bytes
    """Public half of the recovery key, 32 bytes."""
    succession: Succession | None = None
    """Why `tree` is current; None while that is generation 0."""
    former: tuple[KeyTree, ...] = ()
    """Trees of older generations, whose records may be read; nothing is written with them."""

    @property
    def log(self) -> bytes:
        """Name of the head log."""
        return log_name(self.first_key, self.recovery_public)

    @property
    def generation(self) -> int:
        return self.succession.generation if self.succession else 0

    @property
    def epoch_floor(self) -> int:
        """Epochs of this generation are above this number."""
        return self.generation << EPOCH_BITS

    def claim(self, epoch: int, mount_id: bytes) -> HeadClaim:
        """A signed claim. `epoch` must be one of this generation."""
        unsigned = HeadClaim(
            self.first_key, self.recovery_public, epoch, mount_id, bytes(SIGNATURE_SIZE), self.succession
        )
        return replace(unsigned, signature=self.sign(unsigned.signed_bytes()))

    def sign(self, message: bytes) -> bytes:
        """The current head signing key's signature (64 bytes). Not for followers, who have no such key."""
        if not isinstance(self.tree, KeyTree):
            raise TypeError("a follower signs nothing")
        return sign(self.tree.signing_seed, message)

    def verifier(self) -> Callable[[HeadRecord], bool]:
        """Tells whether one of these keys, former ones included, signed a record."""
        signers = [tree.verifying_key for tree in (self.tree, *self.former)]
        log = self.log

        def is_genuine(record: HeadRecord) -> bool:
            signed = record.signed_bytes(log)
            return any(fits(signer, record.signature, signed) for signer in signers)

        return is_genuine

    def are_replaced(self, successions: Iterable[Succession | None]) -> bool:
        """Whether the recovery key has made other keys than these the current ones, by what servers show."""
        genuine = [each for each in successions if each and each.is_endorsed(self.log, self.recovery_public)]
        youngest = max(genuine, key=lambda each: each.generation, default=None)
        return youngest is not None and youngest.verifying_key != self.tree.verifying_key

    def yields_to(self, succession: Succession | None) -> bool:
        """Whether the recovery key has made a younger generation than this.

        With `former` keys, so while this generation is being made, another one of the same number too.
        """
        if succession is None or not succession.is_endorsed(self.log, self.recovery_public):
            return False
        is_rival = self.former and succession.verifying_key != self.tree.verifying_key
        return succession.generation > self.generation - bool(is_rival)
