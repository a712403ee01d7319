"""The seats of the pool's instances: who lives on them, who watches them, how they are filled."""
