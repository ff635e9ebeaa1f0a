"""What a person gets to see of a scan, and what they say to it: files, page, DICOM objects, corrections."""
