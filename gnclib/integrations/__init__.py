"""The learned energies inside other libraries. Each module here needs the library that it is named after:

deepinv    a ``deepinv.optim.Prior`` and a ``deepinv.models.Denoiser``: :mod:`gnclib.integrations.deepinv`

Importing this package imports none of them.
"""
