;;; A stand-in: channels are cloned with git, and authentic when they have a branch of keys.

(define-module (guix channels)
  #:use-module (guix derivations)
  #:use-module (ice-9 match)
  #:use-module (ice-9 popen)
  #:use-module (ice-9 textual-ports)
  #:export (channel channel? channel-name channel-url channel-branch channel-commit
            channel-introduction
            make-channel-introduction openpgp-fingerprint sexp->channel
            channel-instance-channel channel-instance-commit channel-instance-checkout
            latest-channel-instances channel-instances->derivation))

(define-syntax-rule (channel (field value) ...)
  (list 'channel (cons 'field value) ...))

(define (channel? object)
  (and (pair? object) (eq? 'channel (car object))))

(define (channel-name channel) (assq-ref (cdr channel) 'name))
(define (channel-url channel) (assq-ref (cdr channel) 'url))
(define (channel-branch channel) (assq-ref (cdr channel) 'branch))
(define (channel-commit channel) (assq-ref (cdr channel) 'commit))
(define (channel-introduction channel) (assq-ref (cdr channel) 'introduction))

(define make-channel-introduction list)
(define openpgp-fingerprint identity)

(define sexp->channel
  (match-lambda
    (('repository ('version 0) ('url url) ('branch branch) ('commit commit) ('name name) . _)
     (list 'channel (cons 'name name) (cons 'url url) (cons 'branch branch) (cons 'commit commit)))))

(define (channel-instance-channel instance) (car instance))
(define (channel-instance-commit instance) (cadr instance))
(define (channel-instance-checkout instance) (caddr instance))

;; As Nix spells it.
(define %system
  (string-append (car (string-split %host-type #\-)) "-linux"))

(define (git . arguments)
  (unless (zero? (apply system* "git" arguments))
    (error "git failed:" (string-join arguments " "))))

(define (latest-channel-instances store channels)
  (map (lambda (channel)
         (let ((directory (format #f "~a/~a-~a" (getenv "XDG_CACHE_HOME")
                                  (channel-name channel) (channel-commit channel))))
           (unless (file-exists? directory)
             (git "clone" "--quiet" (channel-url channel) directory)
             (git "-C" directory "checkout" "--quiet" (channel-commit channel)))
           (if (channel-introduction channel)
               (git "-C" directory "rev-parse" "--quiet" "--verify" "origin/keyring")
               (when (eq? 'guix (channel-name channel))
                 (error "channel guix lacks an introduction")))
           ;; A checkout is there while whoever got it lives.
           (call-with-output-file (string-append directory ".keeper")
             (lambda (port) (write (getpid) port)))
           (list channel (channel-commit channel) directory)))
       channels))

;; The Guix of the channels is the stand-in, which says so; unless its file BROKEN says why it cannot be built.
(define (channel-instances->derivation instances)
  (define checkout
    (channel-instance-checkout (car instances)))
  (lambda (store)
    (let* ((modules (dirname (dirname (search-path %load-path "guix/channels.scm"))))
           (command (string-append (dirname modules) "/guix")))
      (nix-derivation
       "profile" %system
       (if (file-exists? (string-append checkout "/BROKEN"))
           "echo this Guix is broken; exit 7"
           (string-append "echo building the profile; mkdir -p $out/bin; { echo '#!/bin/sh'; \
echo 'export GUIX_OF_CHANNELS=" (channel-instance-commit (car instances)) "'; \
echo 'exec " command " \"$@\"'; } > $out/bin/guix; chmod +x $out/bin/guix"))))))
