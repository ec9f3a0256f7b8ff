"""Operations, and the protocol by which peers call them."""
