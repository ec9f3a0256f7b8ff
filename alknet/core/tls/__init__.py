"""What TLS needs on every transport: certificates, credentials and whom a dialler trusts."""
