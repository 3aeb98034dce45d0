"""An exported data set to the Hugging Face hub, by the library of that name, with the user's own token.

The token is the library's to find (HF_TOKEN, or a login); it is neither read, kept nor printed here.
"""

from pathlib import Path

from counterfoil.errors import ConfigError, RunError, first_line
from counterfoil.export import KINDS

__all__ = ["push_folder"]


def push_folder(folder: Path, repo: str) -> str:
    """Upload a folder as a data set, into a repository that is made, private, where there is none; return its address.

    Raises ConfigError where there is no token or the name is none, RunError where the hub refuses or is out of reach.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if get_token() is None:
        allowed, do = "a token that may write", "Run `hf auth login`, or set HF_TOKEN."
        raise ConfigError(f"--push {repo}", given="no token for the hub", allowed=allowed, do=do)
    api = HfApi(library_name="counterfoil")
    try:
        made = api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Upload by counterfoil",
            allow_patterns=["README.md", *(f"{name}/train-00000-of-00001.parquet" for name in ("data", *KINDS))],
        )
    except HFValidationError as error:
        given = first_line(error)
        raise ConfigError(f"--push {repo}", given=given, allowed="USER/NAME", do="Fix the name.") from error
    except OfflineModeIsEnabled as error:
        do = "Unset HF_HUB_OFFLINE for this command."
        raise RunError(f"--push {repo}", given="HF_HUB_OFFLINE is set", allowed="the hub in reach", do=do) from error
    except Exception as error:  # what its HTTP client raises is of another package in each of its versions
        given = first_line(error)
        do = "Check the name, the token's rights and the network, and push again: what is there is not sent twice."
        raise RunError(f"--push {repo}", given=given, allowed="a repository that you may write to", do=do) from error
    return str(made)
