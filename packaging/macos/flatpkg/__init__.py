"""Writes a macOS installer package in the flat format, reproducibly, on any system.

`make pkg` runs it on systems without Apple's pkgbuild and productbuild, so that the package can be built,
read and tested there.

    product.py   the contents of a product archive: Distribution, and one component
    xar.py       the archive around it
    cpio.py      the files themselves, and the scripts
    bom.py       the list of them, for the receipt
    tree.py      the source directory
    macho.py     the processors of an executable

Apple documents only the archive's format.  The others are known from the tools that read and write them; only
a Mac can prove that macOS accepts the result.
"""
