"""Repositories of the hub: files are fetched into its own cache, and are local files then."""

from jax_mdlm.config import ConfigError, first_line


def fetch_repository(asked: str, allow: list[str], ignore: str, kind: str = "model") -> str:
    """Fetches files of a repository, but not again what is in the local cache already.

    Where the hub cannot be reached, the cache serves; nothing is asked for again and again.

    Args:
      asked: "ORG/NAME[@REVISION]".
      allow: Patterns of the files that are wanted, as `fnmatch` reads them: `*` crosses folders.
      ignore: Pattern of those that are not, "" = none.
      kind: "model" or "dataset".

    Returns:
      The local folder.

    Raises:
      ConfigError: no network, no such repository, no access, not a name.
    """
    import huggingface_hub
    from huggingface_hub import errors

    name, _, revision = asked.partition("@")
    try:
        return huggingface_hub.snapshot_download(
            name,
            repo_type=kind,
            revision=revision or None,
            allow_patterns=allow,
            ignore_patterns=ignore or None,
        )
    except Exception as error:
        reasons = {
            errors.GatedRepoError: "its page must grant you access first",
            errors.RepositoryNotFoundError: "no such repository, or a private one",
            errors.RevisionNotFoundError: "no such revision",
            errors.LocalEntryNotFoundError: "it cannot be reached, and the cache holds no copy",
        }
        known = (text for kind, text in reasons.items() if isinstance(error, kind))
        raise ConfigError(
            f"the hub does not give {asked} ({next(known, first_line(error))}); correct the name, "
            "log in with `hf auth login`, or name a local folder"
        ) from error
