"""Writes a macOS installer package, in the flat format, on any system and byte for byte the same.

`make pkg` runs it where Apple's pkgbuild and productbuild are not, so that the package can be built, read and
tested there.

    product.py   what a product archive holds: Distribution, and one component
    xar.py       the archive round all of it
    cpio.py      the files themselves, and the scripts
    bom.py       the list of them that the receipt is made from
    tree.py      the directory that they come from
    macho.py     which processors an executable is for

Apple documents none of these formats but the archive's.  What is known of them is common knowledge of the
tools that read and write them; that a Mac takes what is written here needs a Mac to be proven.
"""
