# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a client gets for an answer; `make_app.py` puts it into the app.

MONAI Label answers every exception with "Internal Server Error", and leaves it out of its log. Of a labelmap in 2D it
takes the channel for an axis.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monai.transforms import SqueezeDimd

__all__ = ["answering", "flat"]

logger = logging.getLogger(__name__)


def answering(infer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method `infer` of an app, with failures told to the client and written into the log."""

    @functools.wraps(infer)
    def answer(app: Any, request: Mapping[str, Any], datastore: Any = None) -> Any:
        image = request.get("image")
        if isinstance(image, str) and not Path(image).exists() and not app.datastore().get_image_uri(image):
            raise HTTPException(status_code=404, detail=f"{image}: there is no such study")
        try:
            return infer(app, request, datastore)
        except HTTPException:
            raise
        except Exception as error:
            from atlas_istn.errors import explanation_of, message_of  # of the bundle, on the path since it is in use

            if explanation_of(error):
                logger.error("%s", message_of(error))
            else:
                logger.exception("the study cannot be segmented")
            raise HTTPException(status_code=500, detail=message_of(error)) from None

    return answer


def flat(init_infers: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return the method `init_infers` of an app, with the labelmaps of models in 2D written as pictures ``[x, y]``."""

    @functools.wraps(init_infers)
    def init(app: Any) -> dict[str, Any]:
        tasks = init_infers(app)
        for task in tasks.values():
            if task.dimension == 2:
                task.post_transforms = _squeezing(task.post_transforms)
        return tasks

    return init


def _squeezing(post_transforms: Callable[..., Sequence[Any]]) -> Callable[..., list[Any]]:
    def post(data: Any = None) -> list[Any]:
        return [*post_transforms(data), SqueezeDimd(keys="pred", dim=0)]

    return post
