"""Downloads from the Hugging Face hub, into huggingface_hub's own cache. Needs huggingface_hub.

`HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` have the meaning that huggingface_hub gives them. Without a
network, files come from the cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

from asd_policy.errors import ConfigError, HubError

RepoType = Literal["model", "dataset"]

MAX_BYTES = 64 * 2**30
"""Largest download, unless the caller sets another limit."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HUB_ID = re.compile(rf"({NAME}/{NAME})(?:@([\w./+-]{{1,200}}))?")
FILE_SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors", ".json", ".zarr", ".zip", ".hdf5", ".h5")
"""Ends of names that are files on disk and no repositories."""


class HubId(NamedTuple):
    """A repository of the hub, and its branch, tag or commit; None for the default branch."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path, revision: str | None = None) -> HubId | None:
        """The repository that "user/name" or "user/name@revision" names; None if the text has another form.

        Raises:
            ConfigError: if the text and `revision` name different revisions.
        """
        found = HUB_ID.fullmatch(str(text))
        if found is None or found[1].endswith(FILE_SUFFIXES):
            return None
        if revision is not None and found[2] not in (None, revision):
            raise ConfigError(
                f"{text} names the revision {found[2]!r}, but revision is {revision!r}; pass one of them."
            )
        return cls(found[1], revision or found[2])

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Attributes:
        hub_id: the repository, and the revision that was asked for.
        repo_type: "model" or "dataset".
        commit: the commit's hash.
        sizes: the repository's files and their sizes in bytes. Without a network: the files in the cache.
        folder: the folder in the cache, if the hub could not be asked; else None.
        cache_dir, token: see huggingface_hub.
    """

    hub_id: HubId
    repo_type: RepoType
    commit: str
    sizes: Mapping[str, int]
    folder: Path | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None

    def download(
        self,
        patterns: Iterable[str],
        ignored: Sequence[str] = (),
        max_bytes: int = MAX_BYTES,
        force_download: bool = False,
    ) -> Path:
        """Download the files that match a pattern and are not ignored. Files in the cache are not downloaded again.

        Args:
            patterns, ignored: shell patterns of file names; `*` matches "/" too. `glob.escape` gives a file's own.
            max_bytes: the largest sum of the files' sizes.
            force_download: replace files in the cache.

        Returns:
            The folder of the repository's files in the cache.

        Raises:
            HubError: if no file matches, the files are too large, or the download fails.
        """
        patterns = list(patterns)
        chosen = [name for name in self.sizes if _matches(name, patterns) and not _matches(name, ignored)]
        if not chosen:
            held = ", ".join(list(self.sizes)[:12]) or "no files"
            raise HubError(f"{self.hub_id} has no file that matches {' or '.join(patterns)}; it has {held}.")
        total = sum(self.sizes[name] for name in chosen)
        if total > max_bytes:
            raise HubError(
                f"{self.hub_id}: the {len(chosen)} files to download have {total} bytes, more than the {max_bytes} "
                f"allowed. Download them yourself (hf download {self.hub_id.repo}), and pass the folder."
            )
        if self.folder is not None:
            return self.folder
        return self._download(patterns, ignored, chosen, force_download)

    def _download(self, patterns: list[str], ignored: Sequence[str], chosen: list[str], force: bool) -> Path:
        try:
            folder = Path(
                _library().snapshot_download(
                    self.hub_id.repo,
                    repo_type=self.repo_type,
                    revision=self.hub_id.revision,  # not the commit: the cache then knows the branch without a network
                    allow_patterns=patterns,
                    ignore_patterns=list(ignored),
                    cache_dir=self.cache_dir,
                    token=self.token,
                    force_download=force,
                )
            )
        except Exception as error:  # the network errors of requests or of httpx, by huggingface_hub's version
            raise HubError(f"The download of {self.hub_id} failed: {_told(error)} Try again: it continues.") from error
        if folder.name != self.commit:
            raise HubError(f"{self.hub_id} was changed while it was downloaded. Try again.")
        missing = [name for name in chosen if not (folder / name).is_file()]
        if missing:
            raise HubError(f"The download of {self.hub_id} lacks {', '.join(missing[:8])}. Try again.")
        return folder


def open_snapshot(
    hub_id: HubId,
    repo_type: RepoType = "model",
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Snapshot:
    """Ask the hub for a repository's files. If the hub cannot be reached, look into the cache.

    Args:
        local_files_only: only look into the cache.

    Raises:
        HubError: if there is no such repository or revision, or it needs a login, or the hub cannot be reached and the
            cache lacks the repository. Also if huggingface_hub is not installed.
    """
    library = _library()
    if local_files_only:
        return _cached(hub_id, repo_type, cache_dir, token, "local_files_only is set")
    try:
        info = library.HfApi(token=token).repo_info(
            hub_id.repo, repo_type=repo_type, revision=hub_id.revision, files_metadata=True
        )
    except library.errors.GatedRepoError as error:
        raise HubError(
            f"The {repo_type} {hub_id.repo} is gated: accept its terms on its page, and log in (hf auth login)."
        ) from error
    except library.errors.RevisionNotFoundError as error:
        raise HubError(f"The {repo_type} {hub_id.repo} has no revision {hub_id.revision!r}.") from error
    except library.errors.RepositoryNotFoundError as error:
        raise HubError(
            f"The hub has no {repo_type} {hub_id.repo} that you may read. If it is private, log in (hf auth login)."
        ) from error
    except library.errors.HFValidationError as error:
        raise HubError(f"{hub_id} is no valid name of a repository: {_told(error)}") from error
    except Exception as error:  # the network errors of requests or of httpx, by huggingface_hub's version
        return _cached(hub_id, repo_type, cache_dir, token, _told(error))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return Snapshot(hub_id, repo_type, str(info.sha), sizes, None, cache_dir, token)


def fetch(
    repo: str,
    patterns: Iterable[str],
    revision: str | None = None,
    repo_type: RepoType = "model",
    ignored: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Download files of a repository. Returns their folder in the cache.

    Args:
        repo: "user/name" or "user/name@revision".
        patterns, ignored, max_bytes: see `Snapshot.download`.
        revision: a branch, tag or commit. By default the main branch.
        repo_type: "model" or "dataset".

    Raises:
        ConfigError: if `repo` is no name of a repository, or names another revision than `revision`.
        HubError: if the repository or its files cannot be downloaded; the message gives the reason.
    """
    hub_id = HubId.parse(repo, revision)
    if hub_id is None:
        raise ConfigError(f"{repo!r} is no repository of the hub; expected user/name or user/name@revision.")
    return open_snapshot(hub_id, repo_type).download(patterns, ignored, max_bytes)


def pinned(text: str) -> str:
    """A hub id with its present commit ("user/name@commit"), so that it names the same files later.

    Any other text is returned unchanged: a file or folder on disk, or a repository that cannot be found.
    """
    hub_id = None if Path(text).exists() else HubId.parse(text)
    if hub_id is None:
        return text
    try:
        return str(HubId(hub_id.repo, open_snapshot(hub_id).commit))
    except HubError:
        return text


def _cached(
    hub_id: HubId, repo_type: RepoType, cache_dir: str | Path | None, token: str | bool | None, reason: str
) -> Snapshot:
    """The repository in the cache. Raises HubError with the reason for looking there if the cache lacks it."""
    library = _library()
    try:
        folder = Path(
            library.snapshot_download(
                hub_id.repo,
                repo_type=repo_type,
                revision=hub_id.revision,
                cache_dir=cache_dir,
                local_files_only=True,
            )
        )
    except (OSError, ValueError) as error:
        option = "" if hub_id.revision is None else f" --revision {hub_id.revision}"
        kind = "" if repo_type == "model" else f" --repo-type {repo_type}"
        raise HubError(
            f"The hub was not reached ({reason.rstrip('.')}), and {hub_id} is not in the cache "
            f"{cache_dir or library.constants.HF_HUB_CACHE}. Without a network: run `hf download {hub_id.repo}{option}"
            f"{kind}` on a machine that has one, copy the folder that it prints, and pass its path."
        ) from error
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    return Snapshot(hub_id, repo_type, folder.name, sizes, folder, cache_dir, token)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _told(error: Exception) -> str:
    """The first line of an error's message, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0][:300].rstrip('.')}."


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            "The hub was not asked, because huggingface_hub is not installed (pip install 'asd-policy[hub]')."
        ) from error
    import huggingface_hub.errors

    return huggingface_hub
