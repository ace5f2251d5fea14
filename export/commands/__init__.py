"""The commands kap-export, kap-inspect and kap-verify."""
