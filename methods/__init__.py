"""The methods, one file each; folders are the first part of the survey's leaf ids."""
