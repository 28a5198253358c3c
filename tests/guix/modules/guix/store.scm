;;; A stand-in: what the scripts need of a store.

(define-module (guix store)
  #:use-module (srfi srfi-35)
  #:export (with-store set-build-options build-things run-with-store
            &store-connection-error store-connection-error? store-connection-error-code
            &store-protocol-error store-protocol-error? store-protocol-error-message))

(define-syntax-rule (with-store store body ...)
  (let ((store 'store))
    body ...))

(define (set-build-options store . options)
  #t)

(define (build-things store things)
  (unless (zero? (apply system* "nix-store" "--realise" things))
    (throw 'store-protocol-error "the build failed")))

;; Values of its monad are procedures here.
(define* (run-with-store store value #:key system)
  (value store))

;; As Guix has them: no errors of Guile's own.
(define-condition-type &store-error &error store-error?)

(define-condition-type &store-connection-error &store-error
  store-connection-error?
  (errno store-connection-error-code))

(define-condition-type &store-protocol-error &store-error
  store-protocol-error?
  (message store-protocol-error-message))
