"""Generators on the Hugging Face Hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.export import import_extra

WEIGHTS = "model.safetensors"  # as scripts.publish writes it


def local_file(source: str | Path) -> Path:
    """`source` as a path; a file on the Hub is downloaded, or found in the cache of huggingface_hub.

    Args:
        source: a path, or hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FILE. The file is
            model.safetensors if none is named.

    Raises:
        ValueError: huggingface_hub is not installed; the Hub has no such file, or not for this token; or there is no
            network and the file is not in the cache.
    """
    address = re.sub("^hf:/+", "hf://", Path(source).as_posix())  # a Path merges slashes
    if not address.startswith("hf://"):
        return Path(source)
    hub = import_extra("huggingface_hub", "hub")
    with hub_errors(address):
        place = hub.parse_hf_uri(address)
        file = place.path_in_repo or WEIGHTS
        return Path(hub.hf_hub_download(place.id, file, revision=place.revision, repo_type=place.type))


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Raise the errors of huggingface_hub, which are of a dozen types, as a ValueError about `what`."""
    errors = import_extra("huggingface_hub.errors", "hub")
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(
            f"{what}: it is not in the local cache, and the Hugging Face Hub cannot be reached. Download it first: "
            "hf download OWNER/NAME"
        ) from error
    except (ValueError, errors.HfHubHTTPError) as error:
        raise ValueError(f"{what}: {error}") from error
    except (ConnectionError, errors.HTTPError) as error:
        raise ValueError(f"{what}: the Hugging Face Hub cannot be reached ({error})") from error
