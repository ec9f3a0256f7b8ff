"""Mutation testing of the hot path: does a test fail when one line of it is wrong?"""
