"""What a registry should be after whatever was done to it, as plain lists; see tests/torture/test_model.py."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Version:
    """What the model knows of one version of an adapter."""

    name: str
    number: int
    seed: int
    card: int
    description: str
    given: bytes  # what materializing gives back
    removed_at: int = 0  # the step, 0 for not
    pin: str | None = None
    encoding_id: int | None = None
    generator_id: int | None = None

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass
class Model:
    """What the registry should be."""

    versions: list[Version] = field(default_factory=list)
    labels: dict[tuple[str, str], Version] = field(default_factory=dict)
    tokens: dict[str, tuple[str, bool]] = field(default_factory=dict)  # text, and whether it holds
    waiting: dict[int, dict[str, int | None]] = field(default_factory=dict)  # originals in quarantine, by seed
    gone: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)  # generators with a second copy
    cards: set[int] = field(default_factory=set)  # that were stored, and not taken away as nobody's
    steps: int = 0

    def of(self, name: str) -> list[Version]:
        return [one for one in self.versions if one.name == name]

    def live(self, name: str | None = None) -> list[Version]:
        return [one for one in self.versions if not one.removed_at and name in (None, one.name)]

    def owners(self, seed: int) -> list[Version]:
        return [one for one in self.versions if one.seed == seed]

    def codes(self, seed: int) -> dict[str, int | None]:
        return {one.ref: one.encoding_id for one in self.owners(seed)}

    def deletable(self) -> set[int]:
        """Seeds whose weights nothing needs."""

        def does_without(one: Version) -> bool:
            is_copied = one.generator_id is None or one.generator_id in self.copied
            return one.encoding_id is not None and one.pin is None and is_copied

        seeds = {one.seed for one in self.versions} - self.gone
        return {seed for seed in seeds if all(map(does_without, self.owners(seed)))}

    def bring_back(self, seed: int) -> None:
        self.waiting.pop(seed, None)
