from napari_unet import __version__


def main():
    print(__version__)
