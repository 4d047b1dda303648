"""The weights that timm publishes: where they lie in its caches, and their download. `timm_models` loads them.

timm takes most of them from the Hugging Face hub, whose cache is below `$HF_HOME`, and a few from an address, into
torch's cache. What is in a cache is taken as it is: nothing is asked over the network, so all cells of a sweep start
from one file, and which one it was stands in the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch

from fsseg.errors import UserError
from fsseg.model.backbones.weight_files import first_line

if TYPE_CHECKING:
    from types import ModuleType

_PICKLED = "pytorch_model.bin"
_SAFE = {_PICKLED: "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
_SECONDS = 10.0  # that the hub has for an answer


@dataclass(frozen=True)
class TimmWeights:
    """The published weights of one model.

    Attributes:
        model: its name in timm.
        repository: on the hub, with `@revision` if it is not the newest; empty if it is not there.
        names: of files in it, the first one that is there counts: the order is timm's own.
        url: where the file lies that is not on the hub.
        custom: the file is in a format that only the model itself reads.
    """

    model: str
    repository: str = ""
    names: tuple[str, ...] = ()
    url: str = ""
    custom: bool = False

    @classmethod
    def of(cls, timm: ModuleType, model: str) -> TimmWeights:
        """What timm knows of a model's weights.

        Raises:
            UserError: there are none.
        """
        about: Any = timm.get_pretrained_cfg(model)
        if about is not None and about.hf_hub_id:
            name = about.hf_hub_filename or _PICKLED
            safe = _SAFE.get(name, f"{name.removesuffix('.bin')}.safetensors" if name.endswith(".bin") else name)
            return cls(model, about.hf_hub_id, tuple(dict.fromkeys((safe, name))))
        if about is not None and about.url:
            return cls(model, url=about.url, custom=bool(about.custom_load))
        fix = "choose another model, name a file by backbone.weights=, or set backbone.pretrained=false"
        raise UserError(f"backbone.model={model}: timm {timm.__version__} has no weights of it", fix)

    @property
    def way(self) -> str:
        if self.url:
            return f"from {self.url} to {self._place()}"
        from huggingface_hub import constants

        return f"from {constants.ENDPOINT}/{self.repository} to {constants.HF_HUB_CACHE}"

    def cached(self) -> Path | None:
        """The file if it was fetched before, by this program or another."""
        if self.url:
            return place if (place := self._place()).is_file() else None
        import huggingface_hub

        repository, _, revision = self.repository.partition("@")
        for name in self.names:
            found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
        return None

    def fetch(self) -> Path:
        """The file, downloaded if it is not there.

        Raises:
            UserError: it cannot be downloaded.
        """
        if (file := self.cached()) is not None:
            return file
        try:
            return self._download()
        except Exception as error:  # of the hub, the network and the file system
            cache = "torch's cache" if self.url else "timm's cache"
            raise UserError(
                f"the pretrained weights of {self.model} are not in {cache} and cannot be fetched: {first_line(error)}",
                f"run `fsseg prepare --weights` with this line where there is a network, and copy the cache "
                f"({'TORCH_HOME' if self.url else 'HF_HOME'}); or name a file by backbone.weights=; or set "
                "backbone.pretrained=false",
            ) from error

    def _download(self) -> Path:
        if self.url:
            place = self._place()
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(place), progress=False)
            return place
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        repository, _, revision = self.repository.partition("@")
        for name in self.names:
            try:  # one look first: without an answer, `hf_hub_download` would go on asking for minutes
                get_hf_file_metadata(hf_hub_url(repository, name, revision=revision or None), timeout=_SECONDS)
            except EntryNotFoundError:
                continue
            return Path(hf_hub_download(repository, name, revision=revision or None))
        raise FileNotFoundError(f"{constants.ENDPOINT}/{self.repository} has none of {', '.join(self.names)}")

    def _place(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlparse(self.url).path).name
