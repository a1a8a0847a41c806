"""The site: written pages, what makes the others, skeletons of a new method."""
