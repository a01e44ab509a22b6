"""A rendering process: `python -m service.rendering REQUEST`, started by the API, which itself loads no av."""

import os
import sys
from errno import EDQUOT, ENOSPC

from service.rendering.products import render
from service.rendering.request import NO_SPACE, RenderRequest
from service.rendering.scenes import Scene
from service.supervisor import exit_with_parent

NICENESS = 10  # jobs and requests come first


def main() -> int:
    """Write the file of the request, atomically; the exit status."""
    request = RenderRequest.model_validate_json(sys.argv[1])
    exit_with_parent(lambda: os._exit(1))
    os.nice(NICENESS)
    draft = request.out.with_name(f".{request.out.name}")
    try:
        render(request.product, Scene.of(request), draft)
        draft.replace(request.out)
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT):
            raise
        return NO_SPACE
    finally:
        draft.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
