BACKEND: object
