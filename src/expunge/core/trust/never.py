"""Modules that are never called for a name in a file: libraries that can read files, run code or access the system."""

from __future__ import annotations

import sys

#: Libraries that can read files, run code or access the system if called with chosen arguments, and the modules that
#: they install beside themselves. They are never called, and neither is Python's standard library.
_LIBRARIES = (
    "torch torchgen functorch numpy scipy sklearn pandas joblib yaml _yaml ruamel safetensors pydantic "
    "pydantic_core cyclopts rich jinja2 matplotlib mpl_toolkits pylab lightning lightning_fabric pytorch_lightning "
    "lightning_utilities torchmetrics PIL dill cloudpickle h5py zarr msgpack numba llvmlite cffi _cffi_backend "
    "setuptools _distutils_hack pkg_resources pip wheel distutils pytest _pytest py pluggy hypothesis "
    "_hypothesis_pytestplugin _hypothesis_ftz_detector _hypothesis_globals IPython ipykernel ray dask distributed "
    "fsspec requests urllib3 httpx aiohttp paramiko pexpect plumbum execnet xdist psutil onnx onnxruntime sympy "
    "isympy mpmath networkx jsonpickle klepto triton markupsafe threadpoolctl expunge expunge_check"
)
#: Modules of Python that `sys.stdlib_module_names` leaves out: its tests, and modules of other versions.
_MORE_OF_PYTHON = (
    "test lib2to3 asynchat asyncore smtpd imp _testcapi _testinternalcapi _testlimitedcapi _testbuffer "
    "_testimportmultiple _testmultiphase _testsinglephase _testclinic _testclinic_limited _testexternalinspection "
    "_ctypes_test _xxtestfuzz _xxsubinterpreters _xxinterpchannels _xxinterpqueues xxlimited xxlimited_35 xxsubtype "
    "_bootsubprocess _bootlocale sitecustomize usercustomize"
)
#: Modules with these names are not called within a trusted package either (vendored copies), whatever the package.
_LOADERS = frozenset(
    [
        "pickle",
        "cpickle",
        "pickle5",
        "dill",
        "cloudpickle",
        "cloudpickle_fast",
        "joblib",
        "yaml",
        "ruamel",
        "marshal",
        "shelve",
        "copyreg",
        "jsonpickle",
        "klepto",
        "subprocess",
        "runpy",
        "importlib",
        "ctypes",
        "cffi",
    ]
)
_STANDARD = frozenset(name.casefold() for name in {*sys.stdlib_module_names, *_MORE_OF_PYTHON.split()})
_NEVER = frozenset({*(name.casefold() for name in _LIBRARIES.split()), *_STANDARD})


def is_standard(top: str) -> bool:
    """Whether a top-level name is that of a module of Python itself; case is ignored."""
    return top.casefold() in _STANDARD


def is_never_called(top: str) -> bool:
    """Whether a top-level module is never called, with or without `--trust`; case is ignored."""
    return top.casefold() in _NEVER


def find_loader(module: str) -> str | None:
    """Find a component of a dotted name that names a known loader; leading underscores and case are ignored."""
    parts = (part.casefold().lstrip("_") for part in module.split("."))
    return next((part for part in parts if part in _LOADERS), None)
