"""alknet: a self-hostable networking toolkit in which a service is an ALPN."""
