# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a client is told when a study cannot be segmented; `make_app.py` puts it into the app.

MONAI Label answers every exception with "Internal Server Error", and leaves it out of its log.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException

__all__ = ["answering"]

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
