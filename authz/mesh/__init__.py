"""What a mesh's own objects leave open around this service, for ``authz istio-check``: values in, findings out."""
