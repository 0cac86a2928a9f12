"""MuJoCo and robosuite without OpenGL until the first rendering, so that simulation runs without it.

On import, both packages load graphics libraries, and fail on machines without them. So this module imports them with
graphics turned off, and replaces `mujoco.gl_context.GLContext` by a function that loads a library when called.
Import them from here: `from envs.graphics import mujoco, robosuite`.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import importlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import gymnasium

T = TypeVar("T")

OFF = ("disable", "disabled", "off", "false", "0")  # MuJoCo's values of MUJOCO_GL, like those below
DEFAULT = ("", "enable", "enabled", "on", "true", "1")
LIBRARIES = {"egl": "egl", "osmesa": "osmesa", "glfw": "glfw", "glx": "glfw"}
"""MUJOCO_GL -> MuJoCo's module for it, on Linux."""
SEARCHED = {"egl": "EGL", "osmesa": "OSMesa"}
PACKAGES = "`apt-get install libegl1 libgl1 libgl1-mesa-dri` (EGL), or `apt-get install libosmesa6` (OSMesa)"


class RenderingError(gymnasium.error.DependencyNotInstalled, RuntimeError):
    """This process cannot render. Simulation without images is not affected. MuJoCo raises RuntimeError here."""


@contextmanager
def _without_graphics() -> Iterator[None]:
    """A context in which imports load no graphics libraries. It restores MUJOCO_GL.

    robosuite's viewers, which this package does not use, import OpenCV and GLFW. Both need a desktop's libraries. If
    those are missing, an empty module replaces them in the context.
    """
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    stand_ins = [name for name in ("cv2", "glfw") if not _can_import(name)]
    sys.modules.update((name, ModuleType(name)) for name in stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        os.environ.pop("MUJOCO_GL")  # robosuite has written to it
        if before is not None:
            os.environ["MUJOCO_GL"] = before


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


# robosuite advises on optional extras at each import. Its errors are still shown.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

with _without_graphics():
    import mujoco as mujoco  # other modules import it from here by this name
    import mujoco.gl_context
    import robosuite as robosuite


@cache
def check() -> None:
    """Raise RenderingError if no graphics library can be loaded here.

    It creates no context, so the process may still be forked.
    """
    _first(_load)


def prepare() -> None:
    """As `check`, and create a first context, which reveals any fault of the library."""
    if not _parent_has_rendered:
        _context_class()


def gl_context(width: int, height: int) -> Any:
    """A new context of the first working library: MuJoCo's `GLContext`."""
    _check_fork()
    return _context_class()(width, height)


mujoco.gl_context.GLContext = mujoco.GLContext = gl_context


class Renderer(mujoco.Renderer):  # type: ignore[misc,unused-ignore]
    """MuJoCo's renderer, made safe for several renderers in one process.

    Raises:
        RenderingError: if no context can be created.
    """

    def __init__(self, model: Any, height: int, width: int):
        self._gl_context = self._mjr_context = None  # for `close`, if the constructor fails
        self._thread = threading.get_ident()
        try:
            super().__init__(model, height, width)
        except RenderingError:
            raise
        except Exception as error:  # MuJoCo's FatalError, or any exception of PyOpenGL
            raise RenderingError(
                f"{_context_class().__module__} cannot render here ({type(error).__name__}: {error}). Set MUJOCO_GL to "
                f"another of {', '.join(LIBRARIES)} and start again. On Debian: {PACKAGES}."
            ) from error
        _renderers.add(self)
        _close_renderers_at_exit()

    def picture(self, data: Any, camera: str, option: Any) -> Any:
        """Render a camera's image, (H, W, 3) uint8.

        Raises:
            RenderingError: in another thread or process than the renderer's own.
        """
        _check_fork()
        if self._thread != threading.get_ident():
            raise RenderingError(
                "An environment renders in the thread that first rendered it: an OpenGL context belongs to one thread. "
                "Call reset, step and render of an environment from one thread."
            )
        self.update_scene(data, camera, option)
        return self.render()

    def close(self) -> None:
        if self._thread != threading.get_ident():
            self.abandon()
            return
        if self._gl_context:
            # MuJoCo deletes GL objects by number in the current context, which must not be another renderer's.
            self._gl_context.make_current()
        super().close()

    def abandon(self) -> None:
        """Keep the resources until the process ends, because only another thread or process may free them."""
        for resource in (self._gl_context, self._mjr_context):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))  # otherwise its destructor would call OpenGL
        self._gl_context = self._mjr_context = None


_renderers: weakref.WeakSet[Renderer] = weakref.WeakSet()


@cache
def _close_renderers_at_exit() -> None:
    # MuJoCo shuts EGL down at exit. A renderer that was not closed before then fails noisily. Exit handlers run
    # last in, first out, and MuJoCo registers its own with the first renderer, so call this after that.
    def close() -> None:
        for renderer in list(_renderers):
            renderer.close()

    atexit.register(close)


@cache
def _context_class() -> Callable[[int, int], Any]:
    return _first(_tried)


def _first(attempt: Callable[[str], T]) -> T:
    """The result of `attempt` for the first library for which it succeeds."""
    failures = []
    for name in _candidates():
        try:
            return attempt(name)
        except Exception as error:  # PyOpenGL raises many types: AttributeError, OSError, GLError, ...
            failures.append(f"{name}: {type(error).__name__}: {error}")
            _unload()
    raise RenderingError(
        f"Rendering needs OpenGL, and no library for it works here ({'; '.join(failures)}). Simulation without images "
        f"runs. To render, on Debian: {PACKAGES}."
    )


def _candidates() -> tuple[str, ...]:
    """MuJoCo's OpenGL modules to try, as MUJOCO_GL says.

    Raises:
        RenderingError: if MUJOCO_GL turns rendering off or names an unknown library.
    """
    asked = _asked()
    if asked in OFF:
        raise RenderingError(f"MUJOCO_GL={asked} turns rendering off. Unset it to render.")
    if sys.platform == "darwin":
        return ("cgl",)
    if sys.platform != "linux":
        return ("glfw",)
    if asked in LIBRARIES:
        return (LIBRARIES[asked],)
    if asked not in DEFAULT:
        raise RenderingError(
            f"MUJOCO_GL is {asked!r}; expected {', '.join(LIBRARIES)} or disable; if unset, a working one is searched."
        )
    return ("glfw", "egl", "osmesa") if os.environ.get("DISPLAY") else ("egl", "osmesa")


def _asked() -> str:
    return os.environ.get("MUJOCO_GL", "").lower().strip()


def _load(name: str) -> Callable[[int, int], Any]:
    if name in SEARCHED and _asked() in DEFAULT and not ctypes.util.find_library(SEARCHED[name]):
        raise FileNotFoundError(f"lib{SEARCHED[name]} is not installed (MUJOCO_GL={name} tries it all the same)")
    before = set(sys.modules)
    try:
        context: Callable[[int, int], Any] = importlib.import_module(f"mujoco.{name}").GLContext
    finally:
        _loaded.update(module for module in sys.modules.keys() - before if module.startswith(("OpenGL", "mujoco.")))
    return context


def _tried(name: str) -> Callable[[int, int], Any]:
    """The library's context class, after a context was created successfully."""
    global _has_rendered
    _has_rendered = True
    context_class = _load(name)
    context = context_class(64, 64)
    if not context._context:
        raise RuntimeError("it created no context")  # GLFW does not raise
    context.make_current()
    context.free()
    return context_class


def _unload() -> None:
    """Forget a library that does not work, because PyOpenGL loads only one and keeps it."""
    for module in _loaded:
        sys.modules.pop(module, None)
    _loaded.clear()
    if os.environ.get("PYOPENGL_PLATFORM") != PYOPENGL_PLATFORM:  # MuJoCo has written to it
        os.environ.pop("PYOPENGL_PLATFORM")
        if PYOPENGL_PLATFORM is not None:
            os.environ["PYOPENGL_PLATFORM"] = PYOPENGL_PLATFORM


PYOPENGL_PLATFORM = os.environ.get("PYOPENGL_PLATFORM")
_loaded: set[str] = set()  # modules imported by loading a library
_has_rendered = False  # whether this process, or one that it was forked from, has rendered
_parent_has_rendered = False


def _check_fork() -> None:
    if _parent_has_rendered:
        raise RenderingError(
            "This process was forked from one that had rendered, and OpenGL does not survive a fork. Start it afresh: "
            'AsyncVectorEnv(..., context="spawn"), gym.make_vec(..., vector_kwargs={"context": "spawn"}), or '
            'multiprocessing.get_context("spawn").'
        )


def _after_fork() -> None:
    """In a forked child, drop the parent's OpenGL. Any OpenGL call may wait for threads that the child lacks."""
    global _parent_has_rendered
    loaded = [sys.modules[name] for name in EGL_MODULES if name in sys.modules]
    displays = [module for module in loaded if getattr(module, "EGL_DISPLAY", None)]
    _parent_has_rendered = _has_rendered or bool(displays)
    for module in displays:
        atexit.unregister(module.EGL.eglTerminate)
    for renderer in list(_renderers):
        renderer.abandon()


EGL_MODULES = ("mujoco.egl", "robosuite.renderers.context.egl_context")

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
