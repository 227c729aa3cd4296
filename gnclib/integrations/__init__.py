"""The learned energies inside other libraries.

deepinv       a ``deepinv.optim.Prior`` and a ``deepinv.models.Denoiser``; needs deepinv
napari        entries in the menu of napari, for images and stacks; needs napari
bioimageio    a model of the one-step denoiser for bioimage.io, which ImageJ and others run

Importing this package imports none of them.
"""
