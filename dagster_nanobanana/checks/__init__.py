"""Asset checks over what is stored. They buy nothing."""
