"""An SSH agent whose keys are the vault's: `proto` is its wire format, `server` its socket."""
