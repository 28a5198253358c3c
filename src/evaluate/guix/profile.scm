;;; Run by the installed Guix: gets the instances of the channels, authenticated, and prints the derivation of the
;;; profile that holds them, which is a Guix with these channels. Then it waits to be killed: until all jobs are known,
;;; its connection keeps derivation, profile and checkouts from being collected.
;;;
;;; With the argument "build", it has the store build a derivation instead.

(define (request->channel request)
  (let ((get (lambda (key) (assq-ref request key))))
    (channel (name (get 'name))
             (url (get 'repository))
             (branch (or (get 'branch) "master"))
             (commit (get 'commit))
             (introduction (introduction request)))))

(define (print-profile store)
  (let* ((channels (map request->channel (request 'channels)))
         (instances (latest-channel-instances store channels)))
    (for-each
     (lambda (instance)
       (let ((channel (channel-instance-channel instance)))
         (unless (find (lambda (given)
                         (eq? (channel-name given) (channel-name channel)))
                       channels)
           (say "channel ~a, on which others depend, is not in the specification: its commit is ~a today"
                (channel-name channel) (channel-instance-commit instance)))
         (print (cons "channel" (symbol->string (channel-name channel)))
                (cons "commit" (channel-instance-commit instance))
                (cons "checkout" (channel-instance-checkout instance)))))
     instances)
    (let ((derivation (run-with-store store (channel-instances->derivation instances))))
      (print (cons "profile" (derivation-file-name derivation))
             (cons "name" (derivation-name derivation))
             (cons "system" (derivation-system derivation))
             (cons "outputs" (derivation->output-paths derivation))))
    (let wait ()
      (pause)
      (wait))))

(or-fail
 (lambda ()
   (with-store store
     ;; What is built on the way, Guix's own builder, is what a build may fall back on, too.
     (set-build-options store #:fallback? #t)
     (match (cddr (command-line))
       (() (print-profile store))
       (("build" derivation)
        (build-things store (list derivation)))))))
