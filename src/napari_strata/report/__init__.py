"""Reports: runs and studies as HTML files, made without torch, that open offline."""
