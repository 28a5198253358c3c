;;; A stand-in: packages are names; those that begin with "broken" cannot be lowered.

(define-module (guix packages)
  #:use-module (guix derivations)
  #:use-module (guix diagnostics)
  #:use-module (guix store)
  #:use-module (srfi srfi-34)
  #:use-module (srfi srfi-35)
  #:export (package-name package-derivation supported-package? all-packages specification->package
            package-location package-channels))

;; As (gnu packages) does.
(set! %load-path
      (append (string-tokenize (or (getenv "GUIX_PACKAGE_PATH") "") (char-set-complement (char-set #\:)))
              %load-path))

(define package-name identity)

(define* (package-derivation store package system #:key (graft? #t))
  (cond ((string=? package "broken-variable")
         (eval 'no-such-variable (make-fresh-user-module)))
        ((string=? package "broken-call")
         (car '()))
        ((string=? package "broken-exit")
         (exit 3))
        ((string=? package "broken-in-store")
         (raise (condition (&store-protocol-error (message "the store refuses")))))
        ((string=? package "absent-store")
         (raise (condition (&store-connection-error (errno ECONNREFUSED)))))
        ((string=? package "lost-store")
         (scm-error 'system-error "write" "~A" '("Broken pipe") (list EPIPE)))
        (else
         (nix-derivation package system (string-append "echo " package " > $out")))))

(define (supported-package? package system)
  (not (string=? package "unsupported")))

(define (all-packages)
  '("hello" "broken-variable" "unsupported" "zile"))

(define (specification->package name)
  (when (string=? name "unknown")
    (format (current-error-port) "guix: error: ~a: unknown package~%" name)
    (exit 1))
  name)

;; Some are of the channel under test.
(define (package-location package)
  (location (if (member package '("zile" "broken-variable")) "mine/ci.scm" "guix/packages.scm")))

(define (package-channels package)
  '())
