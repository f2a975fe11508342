"""The one tree of errors a user can meet.

Every class docstring is its message template: the fields in braces are the constructor's keyword
arguments, kept as `error.fields` so that a program can read them too. A message names the thing,
what was expected, what was found and what to do next. `exit_code` is stable: the command line
exits with it, and a code never changes its meaning.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class LoraregError(Exception):
    """{message}"""

    exit_code: ClassVar[int] = 1

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        if type(self).__doc__ is None:  # `python -OO` takes docstrings away: what was found is still said
            template = f"{type(self).__name__}: " + ", ".join(f"{name} {{{name}}}" for name in fields)
        else:
            template = inspect.cleandoc(str(type(self).__doc__))
        super().__init__(" ".join(template.format(**fields).split()))


# -- what the user asked for (2 is the command line's own usage error) --------------------------


class InvalidNameError(LoraregError):
    """{kind} {value!r} is not valid: {reason}. Use {expected}."""

    exit_code = 3


class UnknownAdapterError(LoraregError):
    """No adapter {name!r} in {home}.{hint}"""

    exit_code = 4


class UnknownCohortError(LoraregError):
    """No cohort {cohort!r} in {home}. `lorareg cohorts` lists them."""

    exit_code = 4


class UnknownGeneratorError(LoraregError):
    """No generator {generator} in {home}."""

    exit_code = 4


class UnknownFileError(LoraregError):
    """Adapter {ref} has no file {path!r}; it has {files}."""

    exit_code = 4


class OutputExistsError(LoraregError):
    """{path} exists already. Choose another folder with -o, or pass --force to replace it."""

    exit_code = 5


class OutputInUseError(LoraregError):
    """{path} holds {found}, which no adapter folder has, so --force does not replace it.
    Choose another folder with -o.
    """

    exit_code = 5


class NothingToDoError(LoraregError):
    """{message}"""

    exit_code = 6


class MissingExtraError(LoraregError):
    """{feature} needs the package {package!r}, which is not installed. Run: pip install 'lorareg[{extra}]'."""

    exit_code = 7


# -- what the user gave us ----------------------------------------------------------------------


class InvalidAdapterError(LoraregError):
    """{path}: {reason}. {remedy}"""

    exit_code = 10


class UnsupportedAdapterError(InvalidAdapterError):
    """{path}: {reason}. {remedy}"""

    exit_code = 11


class PartialIngestError(LoraregError):
    """{refused} of {found} adapters were refused; the others are in. The table above says why."""

    exit_code = 12


class BaseModelError(LoraregError):
    """Base model {path}: {reason}. {remedy}"""

    exit_code = 13


# -- what the registry holds --------------------------------------------------------------------


class RegistryError(LoraregError):
    """Registry {home}: {reason}. {remedy}"""

    exit_code = 20


class RegistryRefusedError(RegistryError):
    """Registry {home}: {reason}. {remedy}"""

    exit_code = 74  # as for anything else the machine refuses


class RowsMovedError(RegistryError):
    """Registry {home}: its rows were copied to {database}, and count there. Nothing was written. {remedy}"""

    exit_code = 20


class LockedError(RegistryError):
    """Registry {home}: {reason}. {remedy}"""

    exit_code = 20  # one that may be tried again as it is


class BlobsElsewhereError(RegistryError):
    """Registry {home}: {reason}. {remedy}"""

    exit_code = 20  # its rows are in order: the folder or the store is another's


class NewerSchemaError(RegistryError):
    """Registry {home} was written by a newer lorareg (schema {found}, this one knows {expected}). Upgrade lorareg."""

    exit_code = 21


class IntegrityError(LoraregError):
    """{what} is damaged: expected {expected}, found {found}. {remedy}"""

    exit_code = 22


class DamagedRowError(IntegrityError):
    """{what} is damaged: expected {expected}, found {found}. {remedy}"""

    exit_code = 22


class DamagedRowsError(IntegrityError):
    """Damaged rows in {home} ({count}) were passed over, with what they say: {rows}. Restore the database from a
    backup; `lorareg check` names all that is damaged.
    """

    exit_code = 22


class MissingBlobError(IntegrityError):
    """Blob {digest} is missing from {store}. Restore it from a backup. A file of an adapter comes back when the
    adapter is ingested again, a code or generator with `lorareg compress` while the originals are kept.
    """

    exit_code = 23


class OriginalGoneError(LoraregError):
    """The original {path} of {ref} was pruned on {deleted_at}; what is left is its code. Ingest the original again,
    or use what `lorareg materialize {ref}` gives back.
    """

    exit_code = 27


class InvalidContainerError(IntegrityError):
    """{what} cannot be decoded: {reason}. Run `lorareg check --read-data` to see what else is affected."""

    exit_code = 24


class StoreError(LoraregError):
    """Blob store {store}: {reason}. {remedy}"""

    exit_code = 28


class ForeignStoreError(StoreError):
    """Blob store {store} is not this registry's: {mark} says {found}. What one registry does not name, it would
    delete as nobody's. {remedy}
    """

    exit_code = 28


class NewerFormatError(LoraregError):
    """{what} has format {found}; this lorareg reads up to {expected}. Upgrade lorareg."""

    exit_code = 25


class CheckFailedError(LoraregError):
    """{problems} problems found in {home}; the table above names each. Nothing was changed."""

    exit_code = 26


class RepairIncompleteError(LoraregError):
    """{problems} problems in {home} could not be mended; the table above names each. The rest was."""

    exit_code = 26


# -- the contract -------------------------------------------------------------------------------


class ContractError(LoraregError):
    """{option} is not valid: {reason}."""

    exit_code = 30


class LayoutMismatchError(LoraregError):
    """{what} has layout {found}, but {expected} is needed. {remedy}"""

    exit_code = 31


class InterpolationError(LoraregError):
    """{first} and {second} cannot be interpolated: {reason}. {remedy}"""

    exit_code = 33


class TrainingError(LoraregError):
    """Training the generator of cohort {cohort!r} failed: {reason}. {remedy}"""

    exit_code = 32


# -- letting originals go ----------------------------------------------------------------------


class VerificationError(LoraregError):
    """{failed} of {checked} adapters are not what was certified; the table above names each. Nothing was changed."""

    exit_code = 40


class NoCertificateError(LoraregError):
    """{ref} has no certificate: {reason}. {remedy}"""

    exit_code = 41


class BusyError(LoraregError):
    """Registry {home}: another process compresses, sweeps or collects there, and was not done after {waited_s:.0f} s.
    One may at a time. Try again when it is done.
    """

    exit_code = 42


class ReplicaError(LoraregError):
    """Second copy at {location}: {reason}. {remedy}"""

    exit_code = 43


class SignatureError(LoraregError):
    """{what}: {reason}. {remedy}"""

    exit_code = 44


class BundleError(LoraregError):
    """Bundle {path}: {reason}. {remedy}"""

    exit_code = 47


class ProfileError(LoraregError):
    """{engine} cannot serve {what}: it does not support {reason}, and there is {found}. {remedy}"""

    exit_code = 45


class LintError(LoraregError):
    """{errors} of {checked} adapters would not work as they are. The table above says why."""

    exit_code = 46


class EngineError(LoraregError):
    """{engine} at {url}: {reason}. {remedy}"""

    exit_code = 48


class EngineRefusedError(EngineError):
    """{engine} at {url}: {reason}. {remedy}"""

    exit_code = 48  # it answered, and said no to one adapter: others may do


# -- tasks nobody has an adapter for -------------------------------------------------------------


class UnrelatedTaskError(LoraregError):
    """Description {description!r} is like no task of cohort {cohort!r}: it comes as close as {found} to the nearest,
    {nearest}, and shuffled letters come as close as {expected}. Say it in other words, compare by meaning
    (`lorareg describe --sentences`), give --samples, or pass --anyway for what is little more than the mean adapter.
    """

    exit_code = 50


class SamplesError(LoraregError):
    """Samples {path}: {reason}. {remedy}"""

    exit_code = 51


# -- serving ----------------------------------------------------------------------------------


class TokenError(LoraregError):
    """Token {name!r}: {reason}. {remedy}"""

    exit_code = 60


class ServeError(LoraregError):
    """The server cannot start: {reason}. {remedy}"""

    exit_code = 61


# -- the user changed their mind ----------------------------------------------------------------


class LostRankError(LoraregError):
    """Process {rank} of this run is lost: {reason}. What was recorded is safe, and training goes on from its last
    checkpoint: run the same command again.
    """

    exit_code = 53


class StoppedError(LoraregError):
    """{message}"""

    exit_code = 130
