"""The page of `fsseg demo`: masks of images by the example of a few, in a browser on this machine."""
